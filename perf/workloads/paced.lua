-- wrk's script for an overload: requests.lua, but each connection pauses before each request.
--
--   wrk … -s paced.lua URL -- FILE START PAUSE_MS
--
-- Pauses are exponential with a mean of PAUSE_MS. With many more connections than are ever under
-- way, the requests come at moments that do not depend on the answers. Answers of status 503 are
-- refusals; the percentiles are of the others, all of which are taken to be slower.

dofile(debug.getinfo(1, "S").source:sub(2):match("^(.*/)") .. "requests.lua")

local pause, threads, begin = 0, {}, init
refused, failed = 0, 0

function setup(thread)
  table.insert(threads, thread)
end

function init(arguments)
  begin(arguments)
  pause = tonumber(arguments[3])
end

function delay()
  return math.floor(-math.log(1 - math.random()) * pause)
end

function response(status, headers, body)
  if status == 503 then
    refused = refused + 1
  elseif status ~= 200 then
    failed = failed + 1
  end
end

function done(summary, latency, _)
  local errors, turned_away, wrong = summary.errors, 0, 0
  for _, thread in ipairs(threads) do
    turned_away = turned_away + thread:get("refused")
    wrong = wrong + thread:get("failed")
  end
  local share = turned_away / math.max(summary.requests, 1)
  local function answered(percentile)
    return latency:percentile(100 * (share + percentile / 100 * (1 - share))) / 1e3
  end
  io.write(string.format(
    '\n{"seconds": %.6f, "requests": %d, "refused": %d, "errors": %d, "refused_p50_ms": %.3f, '
      .. '"p50_ms": %.3f, "p95_ms": %.3f, "p99_ms": %.3f, "tokens": 0}\n',
    summary.duration / 1e6, summary.requests, turned_away,
    wrong + errors.connect + errors.read + errors.write + errors.timeout,
    turned_away > 0 and latency:percentile(50 * share) / 1e3 or 0,
    answered(50), answered(95), answered(99)
  ))
end
