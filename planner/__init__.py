"""From a `DeploymentSpec` to a `Plan`: cost, simulation, optimisation. Never imports torch."""
