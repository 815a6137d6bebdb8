"""The method: units and their scores, masks, densities, the adaptive penalty, and physical removal."""
