"""The page of `zoo-seg demo` as a Space of the Hugging Face Hub; `python app.py` serves it here as well."""

from zoo_seg.demo.page import launch, page

demo = page()

if __name__ == "__main__":
    launch(demo)
