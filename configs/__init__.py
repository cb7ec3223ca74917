"""One YAML file per recipe; `scripts` finds them beside itself, installed or not."""
