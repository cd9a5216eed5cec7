#!lua flags=allow-oom
-- Uses _pool _queue
-- What became of a gateway's waiters; those who still wait go on waiting for another ticket TTL.
--
-- KEYS  nine per distinct pool (_pool)
-- ARGV  1 ticket ttl (ms), then two per waiter: its pool (1 = the first), request id
-- Reply one list per waiter: {1, candidate, replica, address, fence, lease expiry (ms)} granted; {4, position}
--       waits; {0} its wait is over, or nobody knows it
-- Time  TIME

local now_ms = to_ms(now_us())
local reply = {}
for i = 2, #ARGV, 2 do
  local pool, id = pool_at(1 + POOL_KEYS * (tonumber(ARGV[i]) - 1)), ARGV[i + 1]
  local lease = lease_of(pool, id)
  local ticket = not lease and ticket_of(pool, id)
  local answer = { 0 }
  if lease then
    answer = { 1, lease.candidate, lease.replica, lease.address, lease.fence,
      tonumber(redis.call('ZSCORE', pool.lease, id)) }
  elseif ticket and ticket.deadline > now_ms and redis.call('ZSCORE', pool.line, ticket.member) then
    redis.call('ZADD', pool.q_wait, 'XX', 'GT', math.min(ticket.deadline, now_ms + tonumber(ARGV[1])), id)
    answer = { 4, position_of(pool, ticket) }
  end
  reply[#reply + 1] = answer
end
return reply
