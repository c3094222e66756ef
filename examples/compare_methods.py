"""The same noise and negative under every method, on one labelled sheet."""

from vsf import NAG, NASA, VSF, NoGuidance, load_demo_pipeline
from vsf.draw import Request, draw
from vsf.images import Card, sheet

pipe = load_demo_pipeline()
methods = [NoGuidance(), VSF(1.5, 1.0, stop=0.75), NAG(scale=4.0, alpha=0.5), NASA(scale=0.5)]
cards = []
for prompt, negative in [("a red bike", "wheels"), ("a pink cake", "candles")]:
    drawn = [draw(pipe, Request(prompt, negative, method, seed=3)).guided[0] for method in methods]
    cards.append(Card(prompt, negative, [(m.label, image) for m, image in zip(methods, drawn, strict=True)]))
sheet(cards, title="One noise, four methods").save("methods.png")
