"""Recipes that come with the package, as JSON; see :class:`rrl_match.training.recipe.Recipe`."""
