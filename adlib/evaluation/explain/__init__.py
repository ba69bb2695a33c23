"""Where the network finds its evidence, where that lies in the brain, and whether the maps can be believed."""
