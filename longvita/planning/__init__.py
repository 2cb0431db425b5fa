"""What a training run will take, in memory and time, worked out from its config before it is launched."""
