from __future__ import annotations

from fastapi import APIRouter

from mia.service.schemas import PROBLEMS

router = APIRouter(prefix="/v1", tags=["jobs"], responses=PROBLEMS)
