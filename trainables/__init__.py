"""Does what one trial does: a recipe is prepared, trained, measured, saved and exported."""
