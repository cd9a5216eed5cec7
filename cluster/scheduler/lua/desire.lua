#!lua
-- Write which adapters replicas shall hold, unless another controller is in charge. A controller that was
-- replaced while it computed writes nothing: its view is old.
--
-- KEYS  1 controller, 2 placement, then one want per replica
-- ARGV  1 name of the controller, 2 how long it is in charge (ms), 3 how long the sets stay (ms), 4 what `sprat
--       adapters place` shows (JSON), then one per replica: its adapters, the most wanted first (JSON)
-- Reply 1 written, 0 another controller is in charge
-- Time  none

local in_charge = redis.call('GET', KEYS[1])
if in_charge and in_charge ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[3])
for i = 3, #KEYS do
  redis.call('SET', KEYS[i], ARGV[i + 2], 'PX', ARGV[3])
end
return 1
