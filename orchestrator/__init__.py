"""The room that runs sweeps; the only one that knows Ray, Optuna and MLflow."""
