#!lua flags=allow-oom
-- Extend leases. A late lease that nobody has ended yet still counts in its replica's load, so it may go on.
--
-- KEYS  per distinct pool: lease, lease_info
-- ARGV  1 lease ttl (ms), then three per lease: its pool (1 = the first in KEYS), request id, fence
-- Reply one number per lease: 1 extended (never shortened), 0 lost, or the fence is not the current one
-- Time  TIME

local expiry = now_ms() + tonumber(ARGV[1])
local reply = {}
for i = 2, #ARGV, 3 do
  local first = 2 * tonumber(ARGV[i]) - 1
  local lease = lease_of({ lease_info = KEYS[first + 1] }, ARGV[i + 1])
  if lease and lease.fence == tonumber(ARGV[i + 2]) then
    redis.call('ZADD', KEYS[first], 'XX', 'GT', expiry, ARGV[i + 1])
    reply[#reply + 1] = 1
  else
    reply[#reply + 1] = 0
  end
end
return reply
