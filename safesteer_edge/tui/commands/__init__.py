"""The slash commands of both chats: a table, and what each of them does."""
