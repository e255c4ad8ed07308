-- Purpose: the log of a session's streamed turns, from which a caller who comes back, or late, is shown the answer.
-- Entry ids are '<turn number>-<ordinal of the last frame in it>'. Fields: f, frames as the turn's caller was shown them;
-- e, only in the last entry of a turn, how it ended: told (the frames say it), dead (nobody was left to say it) or
-- overflow (what comes is not logged). The session's field eo says how far the last begun turn is logged: an ordinal;
-- '' if nobody watches it as it comes; 'over' once it has overflowed.
-- Guarantee: ordinals only rise, so an entry never fails behind another write.
-- Needs: keys.lua.

local LOG_LIFE_MS = 300000
local LOG_BYTES_MAX = 8388608

local function log(number, ordinal, ...)
  redis.call('XADD', LOG, number .. '-' .. ordinal, ...)
  redis.call('PEXPIRE', LOG, LOG_LIFE_MS)
end

-- The last entry of a turn that is logged: up to the ordinal `logged`, in so many bytes. Frames that are logged already,
-- or for which there is no room, are left away.
local function log_end(number, logged, bytes, ordinal, frames, how)
  local last = tonumber(logged)
  if not last then return end
  ordinal = tonumber(ordinal)
  if not ordinal or ordinal <= last then ordinal, frames = last + 1, '' end
  if frames ~= '' and tonumber(bytes) + #frames > LOG_BYTES_MAX then ordinal, frames, how = last + 1, '', 'overflow' end
  log(number, ordinal, 'f', frames, 'e', how)
end
