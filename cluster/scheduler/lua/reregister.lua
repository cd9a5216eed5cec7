#!lua flags=allow-oom
-- Uses _pool _queue _money
-- A call runs that the server has no lease for: after data loss its lease and hold are brought back, once. Where its
-- gateway let it run alone (fence 0), it may be known here, waiting or with a lease whose grant was never heard of: then
-- where it runs counts, and its money is here already.
--
-- KEYS  1 resv of the request, 2 fence, then one per budget, then the nine of its pool (_pool), then its dir
-- ARGV  1 request id, 2 step, 3 pool, 4 hold (micro-USD), 5 note, 6 resv ttl (ms), 7 tokens, 8 candidate,
--       9 address, 10 replica, 11 lease ttl (ms), 12 sent to an engine (1 or 0), 13 budgets B,
--       14 the fence it ran under, 15 a replica is dead after (ms), then per budget: ttl (ms)
-- Reply the new fence; 0: the request is known (or over, or elsewhere), nothing was changed
-- Time  TIME

local id, step, tokens, replica = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[7]), ARGV[10]
local budgets = tonumber(ARGV[13])
local pool = pool_at(3 + budgets, ARGV[3])
local known = reservation(redis.call('GET', KEYS[1]))
if known and (ARGV[14] ~= '0' or known.over or known.step ~= step or known.pool ~= pool.name) then
  return 0
end

local now_ms = to_ms(now_us())
local fence = next_fence(redis.call('GET', KEYS[2]), now_ms)
write_fence(KEYS[2], fence)
local sent, freed = ARGV[12] == '1', {}
if known then
  local lease, ticket = end_lease(pool, id), leave_queue(pool, id)
  sent = sent or (lease and lease.dispatched) or (ticket and ticket.sent)
  freed[1] = lease and lease.replica
else
  write_open(KEYS[1], 'open', step, ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6])
  for i = 1, budgets do
    local text = redis.call('GET', KEYS[2 + i])
    local spent, held = parse_budget(text)
    write_budget(KEYS[2 + i], not text, spent, held + tonumber(ARGV[4]), tonumber(ARGV[15 + i]))
  end
end

local row = redis.call('HMGET', pool.load, replica .. '|req', replica .. '|tok', replica .. '|cap', replica .. '|tcap')
if not row[1] then
  -- The replica has not reported yet: its first heartbeat finds this load and keeps it. It may never come: then
  -- `sweep` finds it in the directory, and forgets the load when its leases have ended.
  redis.call('HSET', pool.load, replica .. '|since', string.format('%d', fence - 1))
  redis.call('SADD', KEYS[3 + budgets + POOL_KEYS], replica)
end
begin_lease(pool, id, { tokens = tokens, fence = fence, candidate = tonumber(ARGV[8]), granted_ms = now_ms,
  dispatched = sent, address = ARGV[9], replica = replica }, now_ms + tonumber(ARGV[11]),
  { requests = tonumber(row[1] or 0), tokens = tonumber(row[2] or 0), cap = tonumber(row[3] or 1),
    token_cap = tonumber(row[4] or 0) })
grant_waiters(pool, KEYS[2], freed, now_ms, tonumber(ARGV[15]))
return fence
