"""Who runs what, where: the only room that knows Ray, Optuna and MLflow."""
