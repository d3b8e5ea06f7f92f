"""What `safesteer-edge doctor` examines: the installation, the machine and the default model."""
