#!lua flags=allow-oom
-- Uses _pool
-- Take a replica out at once. Its leases go on; the last trace of it goes when they have ended.
--
-- KEYS  1 rep of the replica, 2 dir, then the nine of its pool (_pool), then one adp per adapter that it held
-- ARGV  1 replica id, 2 only if it has been dead for this long (ms; 0: whatever it is)
-- Reply 'OK'
-- Time  TIME

local dead_after_ms = tonumber(ARGV[2])
if dead_after_ms > 0 and not is_dead(pool_at(3), ARGV[1], to_ms(now_us()) - dead_after_ms) then
  return redis.status_reply('OK') -- it is back
end
redis.call('DEL', KEYS[1])
for i = 3 + POOL_KEYS, #KEYS do
  redis.call('ZREM', KEYS[i], ARGV[1])
end
forget_replica(pool_at(3), KEYS[2], ARGV[1])
return redis.status_reply('OK')
