-- Budgets, rate buckets and reservations.
-- A budget is a string `<spent> <held>` in micro-USD, a rate bucket the theoretical arrival time of GCRA in us,
-- a reservation `open|<step>|<pool>|<hold>|<note>` or `waiting|…`, and once over
-- `settled|<step>|<cost>|<saved>`, `expired|<step>|<charge>|<hold>` or `cancelled|<step>|0|0`.

local function parse_budget(text)
  if not text then
    return 0, 0
  end
  local spent, held = string.match(text, '^(%d+) (%d+)$')
  return tonumber(spent), tonumber(held)
end

-- A new window's key lives for `ttl_ms` (0: for ever); later writes keep what is left of that.
local function write_budget(key, is_new, spent, held, ttl_ms)
  local text = string.format('%d %d', spent, held)
  if is_new and ttl_ms > 0 then
    redis.call('SET', key, text, 'PX', ttl_ms)
  else
    redis.call('SET', key, text, 'KEEPTTL')
  end
end

-- `spent` and `held` change by these amounts in every budget from KEYS[first] to KEYS[last]. Never below zero: a
-- budget that was lost and rebuilt may know less than its reservations. A window whose time is over stays gone.
local function change_budgets(first, last, spent_by, held_by)
  for i = first, last do
    local text = redis.call('GET', KEYS[i])
    if text then
      local spent, held = parse_budget(text)
      write_budget(KEYS[i], false, math.max(0, spent + spent_by), math.max(0, held + held_by), 0)
    end
  end
end

-- A bucket whose theoretical arrival time has come is full, and needs no key.
local function write_bucket(key, arrival_us, at_us)
  if arrival_us <= at_us then
    redis.call('DEL', key)
  else
    redis.call('SET', key, string.format('%d', arrival_us), 'PX', math.ceil((arrival_us - at_us) / 1000))
  end
end

-- Give `back_us` back to a bucket (negative: charge more). Never below now: an idle bucket is full.
local function correct_bucket(key, back_us, at_us)
  if back_us == 0 then
    return
  end
  write_bucket(key, math.max(tonumber(redis.call('GET', key) or 0), at_us) - back_us, at_us)
end

local function reservation(text)
  if not text then
    return nil
  end
  local state, step, rest = string.match(text, '^(%a+)|(%d+)|(.*)$')
  local known = { state = state, step = tonumber(step), over = state ~= 'open' and state ~= 'waiting' }
  if known.over then
    local cost, last = string.match(rest, '^(%d+)|(-?%d+)$')
    known.cost, known.saved = tonumber(cost), tonumber(last)
    if state == 'expired' then
      known.saved, known.hold = 0, tonumber(last)
    end
  else
    local pool, hold, note = string.match(rest, '^([^|]*)|(%d+)|(.*)$')
    known.pool, known.hold, known.note = pool, tonumber(hold), note
  end
  return known
end

local function write_open(key, state, step, pool_name, hold, note, ttl_ms)
  redis.call('SET', key, string.format('%s|%d|%s|%d|%s', state, step, pool_name, hold, note), 'PX', ttl_ms)
end

local function write_over(key, state, step, cost, saved, ttl_ms)
  redis.call('SET', key, string.format('%s|%d|%d|%d', state, step, cost, saved), 'PX', ttl_ms)
end
