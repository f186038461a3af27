"""From N trained members to numbers and to one model: average, ensemble, soup."""
