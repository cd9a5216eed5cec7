#!lua flags=allow-oom
-- Uses _money
-- Raise what the server believes was spent to what the ledger knows, never lower it; after data loss this begins
-- an epoch and opens it once every gateway has had the time to bring its holds back.
--
-- KEYS  1 epoch, then one per budget
-- ARGV  1 grace (ms), then per budget: spent by the ledger (micro-USD), ttl (ms)
-- Reply the epoch: `rebuilding|<id>` or `open|<id>`; the id is the server's clock in ms at its beginning
-- Time  TIME

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

for i = 2, #KEYS do
  local text = redis.call('GET', KEYS[i])
  local spent, held = parse_budget(text)
  local ledger = tonumber(ARGV[2 * i - 2])
  if ledger > spent then
    write_budget(KEYS[i], not text, ledger, held, tonumber(ARGV[2 * i - 1]))
  end
end

local epoch = redis.call('GET', KEYS[1])
local state, id = string.match(epoch or '', '^(%a+)|(%d+)$')
if not state then
  state, id = 'rebuilding', string.format('%d', now_ms)
end
if state == 'rebuilding' and now_ms - tonumber(id) >= tonumber(ARGV[1]) then
  state = 'open'
end
if epoch ~= state .. '|' .. id then
  epoch = state .. '|' .. id
  redis.call('SET', KEYS[1], epoch)
end
return epoch
