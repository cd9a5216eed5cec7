#!lua flags=allow-oom
-- End expired leases and take dead replicas out. Reservations are left alone: a request whose lease has
-- expired can still be settled, once.
--
-- KEYS  per pool: lease, lease_info, reps, load, dir
-- ARGV  1 a replica is dead after (ms), 2 leases to end per pool at most
-- Reply how many leases ended
-- Time  TIME

local now = now_ms()
local ended = 0
for first = 1, #KEYS, 5 do
  local pool, dir = pool_at(first), KEYS[first + 4]
  ended = ended + end_expired_leases(pool, now, ARGV[2])
  for _, replica in ipairs(redis.call('SMEMBERS', dir)) do
    local heartbeat = tonumber(redis.call('HGET', pool.load, replica .. '|hb'))
    if not heartbeat or now - heartbeat >= tonumber(ARGV[1]) then
      forget_replica(pool, dir, replica)
    end
  end
end
return ended
