#!lua flags=no-writes
-- KEYS: meta, order, heads, payloads. ARGV: name. Returns head and payload.
local head = redis.call('HGET', KEYS[3], ARGV[1])
if not head then return redis.error_reply('LEVADANOLETTER') end
return {head, redis.call('HGET', KEYS[4], ARGV[1]) or ''}
