"""`jouleserve report`: what requests cost, from request logs: joules, money, grams of CO2."""
