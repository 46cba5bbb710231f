"""Recipe and headers become a plan: what happens to every tensor, decided before any weight is read."""
