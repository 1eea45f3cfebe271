"""What the black-box tests stand on. Nothing here imports layerfs: expectations are computed independently."""
