"""Reports on the data of a config: its mix, how it is packed, and single sequences token by token."""
