"""What the ports are made of in the world: one package each, none knows another."""
