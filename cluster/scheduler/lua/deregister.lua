#!lua flags=allow-oom
-- Take a replica out at once. Its leases go on; the last trace of it goes when they have ended.
--
-- KEYS  1 rep of the replica, 2 dir, then its pool: lease, lease_info, reps, load
-- ARGV  1 replica id
-- Reply 'OK'
-- Time  none

redis.call('DEL', KEYS[1])
forget_replica(pool_at(3), KEYS[2], ARGV[1])
return redis.status_reply('OK')
