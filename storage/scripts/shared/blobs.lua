-- Purpose: the attachments of a session, each stored once: SHA-256 (hex) → bytes; elements name them (storage/attachments.py).
-- Those that a rewind leaves without an element stay as long as the session: the next one may name them again.
-- In both functions ARGV[first] is a name, ARGV[first + 1] its bytes, and so on, for so many attachments.
-- Needs: keys.lua.

-- Bytes by which they will make the session larger: those that it has count no second time.
local function new_blob_bytes(first, blobs)
  local bytes = 0
  for at = first, first + 2 * blobs - 1, 2 do
    if redis.call('HEXISTS', BLOBS, ARGV[at]) == 0 then bytes = bytes + #ARGV[at + 1] end
  end
  return bytes
end

local function keep_blobs(first, blobs)
  for at = first, first + 2 * blobs - 1, 2 do redis.call('HSETNX', BLOBS, ARGV[at], ARGV[at + 1]) end
end
