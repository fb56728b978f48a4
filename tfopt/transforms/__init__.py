"""Graph rewrites, in the manner of the Graph Transform Tool."""
