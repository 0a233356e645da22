# pip install zoo_seg fastapi uvicorn, then: uvicorn --app-dir examples/serve app:app
import asyncio
import io
import os
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request, Response
from PIL import Image

import zoo_seg
from zoo_seg.errors import ImageError

MAX_BYTES, MAX_PIXELS, MAX_WAITING, BATCH, TIMEOUT = 10_000_000, 8_000_000, 32, 8, 10.0  # the last in seconds
MODEL = os.environ.get("MODEL")  # a file that `zoo-seg export` wrote; else the packaged network
model = zoo_seg.from_exported(MODEL) if MODEL else zoo_seg.semanticfpn_mobilenetv4_small(pretrained="camvid")


def predict(images):  # one that cannot be decoded does not spoil the others
    return list(model.stream(images, batch_size=BATCH, on_error="yield"))


async def work(waiting):
    while True:
        batch = [await waiting.get()]
        while len(batch) < BATCH and not waiting.empty():  # what came in while the network was busy
            batch.append(waiting.get_nowait())
        batch = sorted((each for each in batch if not each[1].done()), key=lambda each: each[0].size)
        try:
            results = await asyncio.to_thread(predict, [image for image, _ in batch])
        except Exception as error:
            results = [error] * len(batch)
        for (_, answer), result in zip(batch, results, strict=True):
            if not answer.done():  # else its request has timed out
                answer.set_result(result)


@asynccontextmanager
async def lifespan(app):
    app.state.waiting = asyncio.Queue(MAX_WAITING)
    app.state.worker = asyncio.create_task(work(app.state.waiting))
    yield
    app.state.worker.cancel()


app = FastAPI(title="zoo_seg", lifespan=lifespan)


async def segmented(request):
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise HTTPException(413, f"the body has more than {MAX_BYTES} bytes; send a smaller image")
    try:
        image = Image.open(io.BytesIO(body), formats=["JPEG", "PNG", "WEBP"])  # reads its header only
    except Exception:
        raise HTTPException(415, "the body is no image; send the bytes of a JPEG, PNG or WebP file") from None
    if image.width * image.height > MAX_PIXELS:
        raise HTTPException(413, f"the image has {image.width}x{image.height} pixels; at most {MAX_PIXELS} are taken")
    answer = asyncio.get_running_loop().create_future()
    app.state.waiting.put_nowait((image, answer))
    return await answer


@app.post("/segment")
async def segment(request: Request):
    try:
        result = await asyncio.wait_for(segmented(request), TIMEOUT)
    except asyncio.TimeoutError:
        raise HTTPException(504, f"no answer within {TIMEOUT:g} s; try again or send a smaller image") from None
    except asyncio.QueueFull:
        raise HTTPException(503, "too many images are waiting; try again", {"Retry-After": "1"}) from None
    if isinstance(result, Exception):
        raise HTTPException(422, str(result)) if isinstance(result, ImageError) else result
    if request.headers.get("accept") == "application/json":
        return {"width": result.mask.shape[1], "height": result.mask.shape[0], "areas": result.areas()}
    png = io.BytesIO()
    await asyncio.to_thread(result.indexed().save, png, "PNG")
    return Response(png.getvalue(), media_type="image/png")


@app.get("/health")
async def health():
    return {"waiting": app.state.waiting.qsize(), "classes": model.classes}
