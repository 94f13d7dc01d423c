#!lua flags=allow-oom
-- KEYS: meta, order, heads, payloads. ARGV: name.
if redis.call('HDEL', KEYS[3], ARGV[1]) == 0 then return redis.error_reply('LEVADANOLETTER') end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
return 1
