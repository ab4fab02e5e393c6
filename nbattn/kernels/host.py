import ctypes, os
_lib=None
def library():
    global _lib
    if _lib is None: _lib=ctypes.CDLL(os.environ.get("NLIB","/tmp/w/libn.so"))
    return _lib
def missing(): return None
