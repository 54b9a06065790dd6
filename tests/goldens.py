"""What the dataset must give: numbers of the two real detections, and names that readers look for.

The numbers are from `sherpa.astro.ui` 4.18.0 and 4.19.0, which agree: load_pha, ignore below 0.5 and above 8 keV,
subtract, group_counts(5), get_data_plot, on the files that come with Sherpa (sherpa/astro/datastack/tests/data).
"""

GOLDENS = {
    "4938.0.43": {
        "n_bins": 190,
        "low": 0.5110,
        "rate": (0.00662743, 0.00518065, 0.00649353),
        "error": (0.00490662, 0.00463727, 0.00311879),
    },
    "7867.0.2": {"n_bins": 40, "low": 0.5110, "rate": (0.007833, 0.00466719, 0.0093996), "error": None},
}

CATALOG_DATASETS = (
    "name",
    "ra",
    "dec",
    "obsid",
    "obi",
    "region_id",
    "src_cnts_aper_b",
    "flux_significance_b",
    "flux_aper_b",
    "theta",
    "flux_bb_aper_b",
    "gti_mjd_obs",
    "hard_hm",
    "hard_hs",
    "hard_ms",
    "var_prob_b",
    "var_index_b",
)
"""Datasets of the catalog's values that existing readers of the HDF5 layout look for."""
