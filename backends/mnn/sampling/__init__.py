"""How a model directory generates: the sampler and what ends generation."""
