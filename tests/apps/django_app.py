"""A Django site in one file, with what frameworks are sensitive to: forms, uploads, streams, addresses."""

import hashlib
import os
import time

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.middleware.csrf import get_token
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

posts = 0


def true_address(get_response):
    """The middleware of README.md."""

    def middleware(request):
        request.META["REMOTE_ADDR"] = request.META["HTTP_X_FORWARDED_FOR"]
        return get_response(request)

    return middleware


@csrf_exempt
def echo(request):
    global posts
    posts += 1
    digest = hashlib.sha256(request.body).hexdigest()
    return JsonResponse({"length": len(request.body), "sha256": digest})


def count(request):
    return JsonResponse({"posts": posts})


def address(request):
    seen = {"address": request.META["REMOTE_ADDR"], "scheme": request.scheme}
    return JsonResponse(seen | {"url": request.build_absolute_uri("/x")})


def form(request):
    if request.method == "POST":
        return JsonResponse({"name": request.POST["name"]})
    return JsonResponse({"token": get_token(request)})


@csrf_exempt
def upload(request):
    digest, file = hashlib.sha256(), request.FILES["file"]
    for block in file.chunks():
        digest.update(block)
    return JsonResponse({"name": file.name, "length": file.size, "sha256": digest.hexdigest()})


def stream(request):
    """`first`, and `last` when the file ?gate exists."""

    def parts(gate):
        yield "first\n"
        while not os.path.exists(gate):
            time.sleep(0.01)
        yield "last\n"

    return StreamingHttpResponse(parts(request.GET["gate"]), content_type="text/plain")


settings.configure(
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="only for the tests",
    ROOT_URLCONF=__name__,
    DATA_UPLOAD_MAX_MEMORY_SIZE=None,
    MIDDLEWARE=[
        f"{__name__}.true_address",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
    ],
)
views = [echo, count, address, form, upload, stream]
urlpatterns = [path(view.__name__, view) for view in views]
django.setup()
app = get_wsgi_application()
