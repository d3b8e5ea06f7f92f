"""Chats on disk: one append-only file each, media by content beside them. See docs/chats.md."""
