#!lua flags=allow-oom
-- Uses _pool _money
-- After data loss: bring a running call's lease and hold back, under a new fence. Once per request.
--
-- KEYS  1 resv of the request, 2 fence, then one per budget, then the nine of its pool (_pool), then its dir
-- ARGV  1 request id, 2 step, 3 pool, 4 hold (micro-USD), 5 note, 6 resv ttl (ms), 7 tokens, 8 candidate,
--       9 address, 10 replica, 11 lease ttl (ms), 12 sent to an engine (1 or 0), 13 budgets B, then
--       per budget: ttl (ms)
-- Reply the new fence; 0: the request is known, nothing was changed
-- Time  TIME

local id, tokens, replica = ARGV[1], tonumber(ARGV[7]), ARGV[10]
local budgets = tonumber(ARGV[13])
local pool = pool_at(3 + budgets, ARGV[3])
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end

local now_ms = to_ms(now_us())
local fence = next_fence(redis.call('GET', KEYS[2]), now_ms)
write_fence(KEYS[2], fence)
write_open(KEYS[1], 'open', tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6])
for i = 1, budgets do
  local text = redis.call('GET', KEYS[2 + i])
  local spent, held = parse_budget(text)
  write_budget(KEYS[2 + i], not text, spent, held + tonumber(ARGV[4]), tonumber(ARGV[13 + i]))
end

local row = redis.call('HMGET', pool.load, replica .. '|req', replica .. '|tok', replica .. '|cap', replica .. '|tcap')
if not row[1] then
  -- The replica has not reported yet: its first heartbeat finds this load and keeps it. It may never come: then
  -- `sweep` finds it in the directory, and forgets the load when its leases have ended.
  redis.call('HSET', pool.load, replica .. '|since', string.format('%d', fence - 1))
  redis.call('SADD', KEYS[3 + budgets + POOL_KEYS], replica)
end
begin_lease(pool, id, { tokens = tokens, fence = fence, candidate = tonumber(ARGV[8]), granted_ms = now_ms,
  dispatched = ARGV[12] == '1', address = ARGV[9], replica = replica }, now_ms + tonumber(ARGV[11]),
  { requests = tonumber(row[1] or 0), tokens = tonumber(row[2] or 0), cap = tonumber(row[3] or 1),
    token_cap = tonumber(row[4] or 0) })
return fence
