# A server for one run or several, from this repository:
#
#     docker build -t deitkit .
#     docker run -p 8000:8000 -v "$PWD/runs/photos:/runs/photos:ro" -e DEITKIT_TOKEN=... deitkit /runs/photos
#
# `docker kill -s HUP` loads the runs again. For the internet, put a proxy with TLS in front.
FROM python:3.12-slim
# PyTorch without CUDA, a tenth of the size.
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch torchvision
COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
RUN pip install --no-cache-dir "/src[serve,cpu]" && rm -rf /src
# Nothing is written; the cache of images is not used by a server.
USER nobody
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/ready')"]
ENTRYPOINT ["deitkit", "serve", "--host", "0.0.0.0"]
