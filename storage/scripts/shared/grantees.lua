-- Purpose: the principals that a session is shared with, as whoever removes it declares them from a prior read: in ARGV
-- from `first` on, and in KEYS from 18 on their lists of what is shared with them.
-- Needs: keys.lua.

local function grantees_are(first)
  if redis.call('HLEN', SHARES) ~= #ARGV - first + 1 then return false end
  for at = first, #ARGV do
    if redis.call('HEXISTS', SHARES, ARGV[at]) == 0 then return false end
  end
  return true
end
