-- Purpose: the one clock (the server's) and whole numbers as text.

-- Milliseconds since 1970 by the server's clock. No client's clock decides anything here.
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- tostring(2^53) is '9.007199254741e+15' in Lua 5.1; every number that is stored or answered goes through here.
local function text(n)
  return string.format('%.0f', n)
end
