"""Open one recording for libav, so that libav reads the bytes of this file only, until a deadline.

libav gets a file object and no path. Playlists and scripts of other files are refused by their format before they are
interpreted. No protocol is allowed through which a container could open a second file or a socket. A growing file ends
at the size that it had when it was opened. After its deadline a file reads as if it ended, so callers check the clock
before they treat that end as the end of the file.

This module also decides whether the file, the machine or the program causes an error (`machine_at_fault`,
`raised_by_this_package`): only errors caused by the file become the record of a clip. A machine without file
descriptors, or whose file server is gone, would fail every following clip, and so would a wrong call.

This module knows no clip and decodes nothing.
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.container import InputContainer
from av.error import FFmpegError

from featurecache.files.regular_file import open_regular
from featurecache.media.channels import remove_channel_labels

BUFFER_BYTES = 1 << 16
HEAD_BYTES = 2048
FORMATS = (
    "3dostr,4xm,aa,aac,aax,ac3,ac4,ace,acm,act,adp,ads,adx,aea,afc,aiff,aix,alaw,alp,amr,"
    "amrnb,amrwb,anm,apac,apc,ape,apm,apng,aptx,aptx_hd,apv,argo_asf,argo_brp,argo_cvg,asf,"
    "asf_o,ass,ast,au,av1,avi,avr,avs,avs2,avs3,bethsoftvid,bfi,bfstm,bink,binka,bit,bmp_pipe,"
    "bmv,boa,bonk,brstm,c93,caf,cavsvideo,cdg,cdxl,cine,codec2,codec2raw,cri_pipe,daud,dcstr,"
    "dds_pipe,derf,dfa,dfpwm,dhav,dirac,dnxhd,dpx_pipe,dsf,dsicin,dss,dts,dtshd,dv,dxa,ea,"
    "ea_cdata,eac3,epaf,evc,exr_pipe,f32be,f32le,f64be,f64le,film_cpk,filmstrip,fits,flac,flic,"
    "flv,frm,fsb,fwse,g722,g723_1,g726,g726le,g728,g729,gdv,gem_pipe,genh,gif,gif_pipe,gsm,"
    "gxf,h261,h263,h264,hca,hcom,hdr_pipe,hevc,hnm,hxvs,iamf,ico,idcin,iff,ifv,ilbc,"
    "image2pipe,ingenient,ipmovie,ipu,ircam,iss,iv8,ivf,ivr,j2k_pipe,jpeg_pipe,jpegls_pipe,"
    "jpegxl_anim,jpegxl_pipe,jpegxs_pipe,jv,kux,kvag,laf,live_flv,lmlm4,loas,lc3,luodat,lvf,lxf,"
    "m4v,matroska,mca,mgsts,mjpeg,mjpeg_2000,mlp,mlv,mm,mmf,mods,moflex,mov,mp3,mpc,mpc8,mpeg,"
    "mpegts,mpegtsraw,mpegvideo,mpjpeg,msf,msnwctcp,msp,mtaf,mtv,mulaw,musx,mv,mvi,mxf,mxg,nc,"
    "nistsphere,nsp,nsv,nut,nuv,obu,ogg,oma,osq,paf,pam_pipe,pbm_pipe,pcx_pipe,pdv,pfm_pipe,"
    "pgm_pipe,pgmyuv_pipe,pgx_pipe,phm_pipe,photocd_pipe,pictor_pipe,pmp,png_pipe,pp_bnk,ppm_pipe,"
    "psd_pipe,psxstr,pva,pvf,qcp,qdraw_pipe,qoa,qoi_pipe,r3d,rawvideo,redspark,rka,rl2,rm,roq,"
    "rpl,rsd,rso,s16be,s16le,s24be,s24le,s32be,s32le,s337m,s8,sap,sbc,scd,sdns,sdr2,sds,sdx,"
    "ser,sga,sgi_pipe,shn,siff,simbiosis_imx,sln,smjpeg,smk,smush,sol,sox,spdif,sunrast_pipe,"
    "svag,svs,swf,tak,thp,tiertexseq,tiff_pipe,tmv,truehd,tta,txd,ty,u16be,u16le,u24be,u24le,"
    "u32be,u32le,u8,usm,v210,v210x,vag,vbn_pipe,vc1,vc1test,vidc,vividas,vivo,vmd,voc,vpk,vqf,"
    "vvc,w64,wady,wav,wavarc,wc3movie,webp_pipe,wsaud,wsd,wsvqa,wtv,wv,wve,xa,xbm_pipe,xmd,"
    "xmv,xpm_pipe,xvag,xwd_pipe,xwma,yop,yuv4mpegpipe"
)
"""libav's formats that hold pictures or sound themselves. Left out are formats that name other files or addresses (hls,
concat, dash, imf, image2, sdp, rtp, vobsub) or run scripts (avisynth, vapoursynth, lavfi), devices, and text."""
POINTER_MARKS = (
    (b"#EXTM3U", "a playlist (HLS)"),
    (b"ffconcat", "a list of files (ffconcat)"),
    (b"[playlist]", "a playlist (PLS)"),
    (b"[Reference]", "a playlist (ASX)"),
    (b"<asx", "a playlist (ASX)"),
    (b"<ASX", "a playlist (ASX)"),
    (b"<MPD", "a manifest (DASH)"),
    (b"<SmoothStreamingMedia", "a manifest (Smooth Streaming)"),
    (b"<AssetMap", "a manifest (IMF)"),
    (b"<CompositionPlaylist", "a manifest (IMF)"),
    (b"c=IN IP", "a session description (SDP)"),
    (b"# VobSub index file", "an index of subtitles (VobSub)"),
)
"""First bytes of files that point to others, and what to call them in an error; `FORMATS` is what refuses them."""


class PointerError(OSError):
    """A file that names other files instead of holding a recording; the text names its kind."""


class _BoundedFile:
    """A file object that ends at the size that the file had when opened, after `num_bytes`, or at the deadline."""

    def __init__(self, file: BinaryIO, name: str, deadline: float, num_bytes: int | None) -> None:
        self.name = name
        self._file, self._deadline = file, deadline
        size = os.fstat(file.fileno()).st_size
        self._size = size if num_bytes is None else min(size, num_bytes)
        self._position = 0

    def read(self, num_bytes: int) -> bytes:
        if self._file.closed or time.monotonic() > self._deadline:
            return b""
        data = os.pread(self._file.fileno(), max(0, min(num_bytes, self._size - self._position)), self._position)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if position < 0:
            return -1
        self._position = position
        return position

    def tell(self) -> int:
        return self._position


@contextmanager
def open_container(path: Path, deadline: float = math.inf, num_bytes: int | None = None) -> Iterator[InputContainer]:
    """Open a recording and find its streams.

    Args:
        deadline: value of `time.monotonic` after which the file seems to end.
        num_bytes: number of bytes after which the file seems to end; None reads the whole file.

    Raises:
        PointerError: the file names other files.
        av.error.FFmpegError, OSError: the file is no recording, or cannot be read.
    """
    with open_regular(path) as file:
        # Some formats have no header: libav would accept an empty file as one of them.
        if not os.fstat(file.fileno()).st_size:
            raise OSError(errno.ENODATA, "an end before any content")
        # libav needs the ending for formats that have no mark in their bytes. It gets no other part of the name.
        ending = path.suffix if path.suffix[1:].isalnum() else ""
        name = os.path.join(os.devnull, "recording" + ending)  # a path at which no file can exist
        try:
            container = av.open(
                _BoundedFile(file, name, deadline, num_bytes),
                mode="r",
                buffer_size=BUFFER_BYTES,
                container_options={"format_whitelist": FORMATS, "protocol_whitelist": "none"},
                **unreadable_tags(av.__version__),
            )
        except FFmpegError as error:
            pointer = _pointer_kind(file)
            if pointer is None:
                raise
            raise PointerError(errno.EPERM, f"{pointer}, which points to other places") from error
        with container:
            remove_channel_labels(container)
            yield container


def unreadable_tags(release: str) -> dict[str, Any]:
    """Return PyAV's settings that accept titles in an unknown encoding; PyAV 19 and later always accepts them."""
    return {} if int(release.partition(".")[0]) >= 19 else {"metadata_errors": "ignore"}


def _pointer_kind(file: BinaryIO) -> str | None:
    """Return the kind of a file that points to other files; None for any other file."""
    head = os.pread(file.fileno(), HEAD_BYTES, 0)
    return next((name for mark, name in POINTER_MARKS if mark in head), None)


MACHINE_ERRORS = frozenset(
    {
        errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT,
        errno.ESTALE, errno.ENOTCONN, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    }
)  # fmt: skip
"""System errors whose cause is not the file that was being read."""


def machine_at_fault(error: OSError) -> bool:
    """Whether a system error would occur with any other file too."""
    return error.errno in MACHINE_ERRORS


def raised_by_this_package(error: BaseException) -> bool:
    """Whether the innermost frame of the error is in this package, which includes wrong calls of a library."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    innermost = str(trace.tb_frame.f_globals.get("__name__", ""))
    return innermost.partition(".")[0] == __name__.partition(".")[0]
