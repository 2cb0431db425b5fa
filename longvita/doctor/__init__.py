"""What is installed on this machine, against what the project and its platforms need."""
