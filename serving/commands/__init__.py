"""The commands `up`, `down`, `status` and the others that change what an endpoint serves."""
