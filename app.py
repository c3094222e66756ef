"""The demo page as a hosted Space: `demo` is the page, and running this file serves it."""

from vsf.ui import build, serve

demo = build()

if __name__ == "__main__":
    serve(demo)
