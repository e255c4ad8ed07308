-- Purpose: the claim of a checkpoint, as the session's field kl has it: `<nonce> <ends ms> <messages that it covers>`.
-- A clock may not make one last for ever: an end further away than the longest claim counts as over.

local CLAIM_MS_MAX = 900000

-- The claim; nil if there is none.
local function claim_of(kl)
  local nonce, ends, covers = string.match(kl or '', '^(%S+) (%d+) (%d+)$')
  return nonce and { nonce = nonce, ends = tonumber(ends), covers = tonumber(covers) }
end

local function claim_remaining_ms(claim, now)
  local remaining = claim.ends - now
  if remaining <= 0 or remaining > CLAIM_MS_MAX then return 0 end
  return remaining
end
