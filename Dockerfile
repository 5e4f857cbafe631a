# The image that a training job runs in; `make image` builds it.
#
# From what changes least to what changes most: the system, the packages of the lock file,
# this package. Where packages come from is said by pip's configuration in the base image.
ARG BASE_IMAGE=python:3.11.14-slim-bookworm
# The TensorFlow inside: cpu, gpu or tpu.
ARG VARIANT=cpu

FROM ${BASE_IMAGE} AS packages
ARG VARIANT
# The environment needs no pip: the base image has one, which installs into it.
RUN python3 -m venv --without-pip /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1
COPY requirements-image-${VARIANT}.lock /opt/venv/requirements.lock
# Left out are 287 MB of headers: nothing is compiled against TensorFlow in a job. The
# 140 MB of compiled Python stay: without them each start takes 5 seconds more.
RUN pip --python /opt/venv/bin/python install --no-cache-dir --use-pep517 \
        --require-hashes --requirement /opt/venv/requirements.lock \
    && rm -r /opt/venv/lib/python3.*/site-packages/tensorflow/include

FROM packages AS package
COPY . /src
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-deps \
        --no-build-isolation --prefix /package /src

FROM packages AS cpu

FROM packages AS gpu
# Where a machine's driver is mounted, as in NVIDIA's own images.
ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM packages AS tpu
RUN ln -s /opt/venv/lib/python3.*/site-packages/libtpu/libtpu.so /lib/libtpu.so
# Source: "Train with TPU VMs", Vertex AI.
ENV NEXT_PLUGGABLE_DEVICE_USE_C_API=true \
    TF_PLUGGABLE_DEVICE_LIBRARY_PATH=/lib/libtpu.so

# An older buildah finds this stage only where VARIANT is given, as `make image` does.
FROM ${VARIANT}
COPY --from=package /package /opt/venv
# As root: where Vertex AI has a trial write its metric, nobody else may write.
# Source: GoogleCloudPlatform/cloudml-hypertune, issue 6.
WORKDIR /root
ENTRYPOINT ["python", "-m", "trainer.task"]
