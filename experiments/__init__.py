"""Claims of the field, reproduced small: one file each, run as `python -m experiments.NAME`.

Each trains on the text of recipes/nano.toml (made in ./store where it is not there yet), over several seeds, and ends
in a verdict (reproduced, absent or reversed) with an effect, its interval, and a picture in docs/pictures/.
"""
