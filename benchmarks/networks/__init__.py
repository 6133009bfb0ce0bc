"""Networks as other projects write them, around MDLSTM layers: what `export_networks.py` exports."""
