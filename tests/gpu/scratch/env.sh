python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target ~/site .whl/*.whl 2>&1 | grep -v WARN | head -3
mkdir -p ~/site/minisgl-0.dist-info; printf 'Metadata-Version: 2.1\nName: minisgl\nVersion: 0\n' > ~/site/minisgl-0.dist-info/METADATA
CU=$(python3 -c "import nvidia,os;print(os.path.join(list(nvidia.__path__)[0],'cu13','lib'))")
export PYTHONPATH=$PWD:~/site FLASHINFER_USE_CUDA_NORM=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 LD_LIBRARY_PATH=$CU
