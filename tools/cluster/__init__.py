"""Work on other machines: what ``--cluster`` names, by Dask."""
