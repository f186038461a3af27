"""How messages move between members. One module for each way."""
